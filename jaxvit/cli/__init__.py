"""The verbs of the command line, one file each; they parse words, call the packages below, and print."""
