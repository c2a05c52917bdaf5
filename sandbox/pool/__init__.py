"""Keep warm environments and parked snapshots of one provider.

`WarmPool` makes environments before they are needed and hands them out; `ParkedSnapshots` counts
the users of snapshots. Who has claimed which environment is the caller's to know.
"""
