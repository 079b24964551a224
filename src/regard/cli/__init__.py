"""The command line: words in, calls of the rooms below, sentences out. It computes nothing, and loads torch only
where a command needs it."""
