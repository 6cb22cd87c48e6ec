//! Whole systems in one process under one seed: the shipping code with simulated hosts, network, disks and store.
