"""A service that answers over HTTP: one model, requests of many clients."""
