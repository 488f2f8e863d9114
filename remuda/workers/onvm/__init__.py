"""The runner's parts. They run on the VM: Python >= 3.7, standard library only, Linux only."""
