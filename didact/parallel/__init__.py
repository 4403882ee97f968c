"""Models over many devices: what a layout needs and takes, and which is the best, in numbers and without torch.

    spec      models, clusters and layouts
    memory    bytes of weights, gradients, moments and activations on every rank
    work      floating-point operations, and bytes between ranks
    pipeline  the order of a pipeline's passes, run through event by event
    ramp      batches that grow while a run goes on
    launch    what a launcher asked for, and which device is this process's
    shards    tensors that lie over processes, and their files
    lockstep  a pass one process could not finish, ended in step with the others
    parted    a module whose layers lie over processes while it is used
    sharding  one module over the processes of a mesh (FSDP2)
    mesh      the processes as a grid of stages, copies and parts of layers
    tensor    layers split over processes
    relay     states and gradients from stage to stage within a loss
    stages    a model cut into the stages of a pipeline
    engine    training steps over all three
    processes a function in several processes of this machine
    planner   what is legal, what it takes, the ranking, and why the first is first

Sources: Smith et al. 2022, arXiv:2201.11990; Korthikanti et al. 2022, arXiv:2205.05198 (activations);
Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO); Narayanan et al. 2021, arXiv:2104.04473 (operations, interleaving).
"""
