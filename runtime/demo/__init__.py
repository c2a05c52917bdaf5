"""Run the same programs under two policies and compare their completion times.

May import the console, dispatch, execution and the SDK.
"""
