"""What a run will need and how fast it can be, from compiling it for real chips."""
