"""The machine: its devices, the sharding of arrays over them, runs of several processes, and the setup of XLA."""
