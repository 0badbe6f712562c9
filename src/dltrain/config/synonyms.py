"""Names that other programs use for what dltrain names otherwise. They lead to advice and are never accepted.

Each line: what is meant, several if it depends on the command or the options, and its other names, folded.
"""

KEYS = """
optim.lr: learningrate initiallr baselr initlr eta
optim.weight_decay: wd l2
batch_size: bs batch minibatch
epochs: nepochs numepochs maxepochs numtrainepochs
optim: optimizer optimiser opt
schedule: scheduler lrscheduler lrschedule sched
data: dataset
data.root: datadir datapath dataroot
model: net network backbone architecture
model.hidden: layers hiddensize hiddensizes hiddendim hiddenlayers units
seed: rng randomseed randomstate manualseed
clip_norm: gradclip clipgrad gradclipnorm maxgradnorm gradientclipval
device.precision: amp fp16 bf16 mixedprecision autocast dtype
ckpt resume: checkpoint checkpointpath ckpt ckptpath run
input: image images inputs path
"""
ADVICE = """
patience=N stops after N epochs without a better metric: earlystopping earlystop
no workers load data, as examples stay in memory: numworkers workers nworkers pinmemory
device=cuda takes a GPU, and CUDA_VISIBLE_DEVICES chooses which: gpu gpus ngpus cuda usecuda gpuid accelerator
training examples are always shuffled, and seed= fixes the order: shuffle
task= chooses the loss: loss lossfn criterion
runs go to outputs/DATE/TIME, to which name= is added: outputdir outdir savedir logdir
save yours as DIR/experiment/NAME.yaml and type --config-dir DIR experiment=NAME: config configfile
"""
OPTIONS = """
there are cpu, cuda (a GPU), and auto, which takes a GPU if there is one: device=gpu device=rocm device=hip
dltrain computes on CPUs and on GPUs of NVIDIA (CUDA) or AMD (ROCm): device=mps device=xpu device=tpu
cuda takes the first GPU, and CUDA_VISIBLE_DEVICES chooses which that is: device=cuda0 device=cuda1 device=cuda2
"""


def fold(name: str) -> str:
    """Return a name in lower case without dashes, underscores and colons."""
    return "".join(letter for letter in name.lower() if letter not in "-_:")


def meaning(table: str, name: str) -> str:
    """Return what a name means by one of the tables above; empty if it is not in there."""
    lines = (line.rpartition(": ") for line in table.splitlines())
    return next((meant for meant, _, names in lines if fold(name) in names.split()), "")
