"""The parts that a policy is composed of, each with a null object."""
