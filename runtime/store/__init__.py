"""Keep programs, steps, decisions and leases in SQL. May import the leaf and tools."""
