"""What touches machines: providers make and remove VMs, backends run jobs on them."""
