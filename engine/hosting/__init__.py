"""Run an engine core in a thread or in a child process.

`LocalEngine` and `ProcessEngine` are the engines of the runtime; `build` makes their core.
"""
