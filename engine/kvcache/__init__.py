"""Keep the books of KV: blocks, prefixes, leases, copies between tiers. Pure, but for the
memory itself."""
