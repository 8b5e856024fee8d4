"""Job stores that outlive a process."""
