"""The command line: one file for each verb. A verb parses arguments, calls the packages below, and prints."""
