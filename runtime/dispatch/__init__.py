"""Put the scheduler in front of a real engine and real environments: events in, actions carried
out. May import the scheduler, the store, the engine and sandboxes."""
