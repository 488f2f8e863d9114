"""OpenStack for tests: a small fake of it, and the real Nova, which must behave alike.

around.py  Keystone, Glance and Neutron, as far as the provider asks them; beside either Nova
nova.py    the fake Nova
fake.py    both as a server of this process
real.py    the real Nova's code as a server; runs in an environment of its own, see docs/openstack.md
"""
