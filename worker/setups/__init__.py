"""What a trainer's directory holds beside the weights: checks of the parallelism, what a rank's memory must hold, and
the files of each trainer. Pure: values in, values out."""
