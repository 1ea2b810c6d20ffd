"""The commands, one a module: `ecgfast.cli` imports that of the command given, and no other.

A module has the function of its command's name, whose signature and docstring tyro turns into options and
help. Where the options depend on the arguments given, as on a preset, it has `command(args)` instead, which
returns that function. What a command works with is imported when its function runs.
"""
