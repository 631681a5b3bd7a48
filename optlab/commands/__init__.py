"""The subcommands of ``python -m optlab``, one file each.

A file holds ``HELP`` (a line), ``add_arguments(parser)`` and ``run(args) -> int``, the exit code;
its name is the subcommand's. What needs pandas, torch or Hydra is imported inside ``run``, so that
``--help`` and the other subcommands start fast.
"""
