"""A TEST DOUBLE of Habana's package: names and manners of release 1.23, on CPU memory. See ../hpu_emulator."""
