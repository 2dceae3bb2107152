"""Kubernetes as tests and measurements use it: a real cluster, which ``KUBECONFIG`` names."""
