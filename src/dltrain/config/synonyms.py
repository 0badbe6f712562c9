"""Names that other programs use for what dltrain names otherwise. They lead to advice and are never accepted.

Written in lower case without dashes and underscores, as `fold` makes them.
"""

KEYS = {  # the key or group that is meant, several if it depends on the command or the options: their names elsewhere
    "optim.lr": "learningrate initiallr baselr initlr eta",
    "optim.weight_decay": "wd l2",
    "batch_size": "bs batch minibatch",
    "epochs": "nepochs numepochs maxepochs numtrainepochs",
    "limit_steps": "steps maxsteps numsteps maxiters iters",
    "max_seconds": "maxtime timeout timelimit",
    "optim": "optimizer optimiser opt",
    "schedule": "scheduler lrscheduler lrschedule sched",
    "data": "dataset",
    "data.root": "datadir datapath dataroot",
    "data.val": "validation valsplit validationsplit valsize",
    "data.augment": "augmentation augmentations transform transforms aug",
    "data.flip": "hflip horizontalflip randomflip",
    "model": "net network backbone",
    "model.arch model": "architecture modelname",
    "model.hidden": "layers hiddensize hiddensizes hiddendim hiddenlayers units",
    "model.dropout": "dropoutrate droprate",
    "seed": "rng randomseed randomstate manualseed",
    "clip_norm": "gradclip clipgrad gradclipnorm maxgradnorm gradientclipval",
    "accumulate": "gradaccum accumulategradbatches gradientaccumulationsteps",
    "device.precision": "amp fp16 bf16 mixedprecision autocast dtype",
    "device.threads": "numthreads nthreads cpus",
    "log_every": "loginterval logfreq printfreq verbose",
    "logger": "tracker logging log",
    "ckpt resume": "checkpoint checkpointpath ckpt ckptpath run",
    "resume ckpt": "resumefrom restore",
    "init ckpt": "weights finetune",
    "input": "image images inputs path",
}
ADVICE = {  # how to get what has no key: its names
    "patience=N stops after N epochs without a better metric": "earlystopping earlystop",
    "no workers load data, as examples stay in memory": "numworkers workers nworkers pinmemory",
    "device=cuda takes a GPU, and CUDA_VISIBLE_DEVICES chooses which": "gpu gpus ngpus cuda usecuda gpuid accelerator",
    "training examples are always shuffled, and seed= fixes the order": "shuffle",
    "task= chooses the loss": "loss lossfn criterion",
    "runs go to outputs/DATE/TIME, to which name= is added": "outputdir outdir savedir logdir",
    "save yours as DIR/experiment/NAME.yaml and type --config-dir DIR experiment=NAME": "config configfile",
}
OPTIONS = {  # the option that is meant, or advice: its names in that group
    "there are cpu, cuda (a GPU), and auto, which takes a GPU if there is one": "device=gpu device=mps device=xpu",
    "cuda takes the first GPU, and CUDA_VISIBLE_DEVICES chooses which that is": "device=cuda:0 device=cuda:1",
    "cosine": "schedule=cosineannealing schedule=cosineannealinglr",
    "plateau": "schedule=reducelronplateau",
    "onecycle": "schedule=onecyclelr",
    "constant": "schedule=none",
    "folder": "data=imagefolder",
    "table": "data=csv",
    "attention": "model=transformer model=vit",
    "cnn": "model=convnet",
    "lstm": "model=rnn",
}
COMMANDS = {"train": "run fit sweep", "eval": "test evaluate validate", "predict": "infer", "inspect": "show info"}


def fold(name: str) -> str:
    """Return a name in lower case without dashes and underscores."""
    return name.lower().replace("_", "").replace("-", "")


def meaning(table: dict[str, str], name: str) -> str:
    """Return what a name means by one of the tables above; empty if it is not in there."""
    return next((meant for meant, names in table.items() if fold(name) in names.split()), "")
