"""The command line: one file a verb. All that parses arguments or prints is here."""
