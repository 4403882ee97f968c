"""Models over many devices: estimates of layouts (without torch), and training and use in them.

    spec      models, clusters and layouts as numbers
    memory    bytes of weights, gradients, moments and activations on every rank
    work      floating-point operations, and bytes between ranks
    pipeline  the order of a pipeline's passes, and its simulation
    ramp      batch-size ramp-up
    launch    the launcher's environment, and the device of this process
    shards    tensors sharded over processes (DTensors), and their files
    lockstep  collectives kept in step after one process ran out of memory
    parted    a module whose layers are sharded over processes and gathered when they run
    sharding  training one module over the processes of a mesh (FSDP2)
    mesh      the processes as a grid of pipeline stages, replicas and tensor-parallel parts
    tensor    tensor parallelism: layers split over processes
    relay     states and gradients sent from stage to stage within a loss
    stages    a model cut into pipeline stages
    engine    training steps over stages, replicas and parts
    processes a function run in several processes of this machine
    planner   legal layouts, their costs, the ranking, and the reasons for the best

Sources: Smith et al. 2022, arXiv:2201.11990; Korthikanti et al. 2022, arXiv:2205.05198 (activations);
Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO); Narayanan et al. 2021, arXiv:2104.04473 (operations, interleaving).
"""
