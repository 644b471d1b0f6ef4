"""Real network file systems on one machine: NFS in small virtual machines, GlusterFS and CephFS by FUSE."""
