"""What the documents report and what was measured for it: the rows of `jaxvit reproduce`. In a checkout: results/."""
