"""Run an engine core in a thread or in a child process.

`ThreadEngine` and `ProcessEngine` are the engines of the runtime; `build` makes their core.
"""
