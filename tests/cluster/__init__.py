"""Claims that need a real Kubernetes cluster."""
