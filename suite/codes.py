"""Exit codes of the commands, beside 0 for done and 1 for a claim or a revision that failed."""

USAGE, UNTRUSTED, INFRASTRUCTURE, INTERRUPTED = 2, 3, 4, 130
