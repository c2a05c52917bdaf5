"""Plan engine steps and carry out commands: batch, cache and runner behind `EngineCore`.

Everything here is synchronous and without torch. A thread, a child process, a simulator or a test
drives it.
"""
