"""What runs it: notebooks in batches, MLflow, clusters, sweeps, the demo, adapting to other scans."""
