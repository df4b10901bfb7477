"""The machine: what a run is and where it is kept, parameters, the batch."""
