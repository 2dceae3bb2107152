"""Charts: what they make of values, and the scripts for Argo CD."""
