"""Fast operators on a CPU, for the engine and the drafters."""
