"""One file per job kind; `run.py` is the one match over them."""
