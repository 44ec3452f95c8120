"""Ray Serve, through its REST API. The only package that speaks to Serve."""
