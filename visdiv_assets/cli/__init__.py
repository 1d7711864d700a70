"""The command `visdiv`: arguments, progress, tables, exit codes.

Not here: any work that a command does; that is in `workflows/`.
Start at `main.py`, which lists all commands; each module holds one family of them.
"""
