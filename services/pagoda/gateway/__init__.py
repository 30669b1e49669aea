"""The gateway: renders an Envoy configuration from a few options and runs Envoy on it."""
