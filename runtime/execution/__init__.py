"""Run a program: its LLM steps, tool steps, budgets and record. May import dispatch,
the store and tools."""
