"""Where the pieces of studies are computed: in processes of this machine, or on the workers of a dask cluster."""
