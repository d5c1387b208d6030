"""The tree of commands: what there is, in which order, and where each one is found."""

from __future__ import annotations

import click

from storaged.cli.lazy import Entry, LazyGroup

_POOL = {
    "list": Entry("storaged.cli.pool_query:list_pools", "List the pools."),
    "info": Entry("storaged.cli.pool_query:info", "Show the state and the sizes of a pool."),
    "ensure": Entry("storaged.cli.pool_ensure:ensure", "See to it that a pool is there and runs."),
    "define-as": Entry("storaged.cli.pool_define:define_as", "Define a pool from options."),
    "define": Entry("storaged.cli.pool_define:define", "Define a pool from XML."),
    "create-as": Entry("storaged.cli.pool_define:create_as", "Start a transient pool."),
    "create": Entry("storaged.cli.pool_define:create", "Start a transient pool from XML."),
    "edit": Entry("storaged.cli.pool_edit:edit", "Edit the definition of a pool."),
    "build": Entry("storaged.cli.pool_state:build", "Make the storage of a pool."),
    "start": Entry("storaged.cli.pool_state:start", "Start a pool."),
    "stop": Entry("storaged.cli.pool_state:stop", "Stop a pool; its data stay."),
    "refresh": Entry("storaged.cli.pool_state:refresh", "Scan the storage of a pool anew."),
    "autostart": Entry(
        "storaged.cli.pool_state:autostart", "Set whether a pool starts with the host."
    ),
    "delete": Entry("storaged.cli.pool_state:delete", "Remove the storage of a stopped pool."),
    "undefine": Entry("storaged.cli.pool_state:undefine", "Forget a stopped pool; its data stay."),
    "policy": Entry("storaged.cli.pool_ensure:policy", "Show or set what new volumes get."),
    "dumpxml": Entry("storaged.cli.pool_query:dumpxml", "Print a pool as XML."),
    "name": Entry("storaged.cli.pool_query:name", "Print the name of a pool."),
    "uuid": Entry("storaged.cli.pool_query:uuid", "Print the UUID of a pool."),
    "find-sources": Entry(
        "storaged.cli.pool_sources:find_sources", "Find sources for a pool as an XML document asks."
    ),
    "find-sources-as": Entry(
        "storaged.cli.pool_sources:find_sources_as", "Find sources for a pool on a server."
    ),
    "capabilities": Entry(
        "storaged.cli.pool_sources:capabilities", "Print the pool types and formats as XML."
    ),
}

_VOL = {
    "list": Entry("storaged.cli.volume_query:list_volumes", "List the volumes of a pool."),
    "info": Entry("storaged.cli.volume_query:info", "Show the sizes of a volume."),
    "ensure": Entry("storaged.cli.volume_create:ensure", "See to it that a volume is there."),
    "create-as": Entry("storaged.cli.volume_create:create_as", "Create a volume."),
    "create": Entry("storaged.cli.volume_create:create", "Create a volume from XML."),
    "clone": Entry("storaged.cli.volume_clone:clone", "Copy a volume."),
    "create-from": Entry(
        "storaged.cli.volume_clone:create_from", "Copy a volume to one that XML describes."
    ),
    "resize": Entry("storaged.cli.volume_change:resize", "Change the capacity of a volume."),
    "convert": Entry("storaged.cli.volume_rewrite:convert", "Write an image anew in its place."),
    "amend": Entry("storaged.cli.volume_rewrite:amend", "Change features of a qcow2."),
    "rebase": Entry(
        "storaged.cli.volume_rewrite:rebase", "Change what a qcow2 has as its backing file."
    ),
    "check": Entry("storaged.cli.volume_image:check", "Check the tables of an image."),
    "inspect": Entry(
        "storaged.cli.volume_image:inspect", "Show what an image is and what it refers to."
    ),
    "upload": Entry("storaged.cli.volume_transfer:upload", "Write a file into a volume."),
    "download": Entry("storaged.cli.volume_transfer:download", "Write a volume to a file."),
    "wipe": Entry("storaged.cli.volume_change:wipe", "Overwrite what a volume holds."),
    "delete": Entry("storaged.cli.volume_change:delete", "Delete a volume."),
    "access": Entry("storaged.cli.volume_access:access", "Tell whether a user can open a volume."),
    "dumpxml": Entry("storaged.cli.volume_query:dumpxml", "Print a volume as XML."),
    "path": Entry("storaged.cli.volume_query:path", "Print the path of a volume."),
    "key": Entry("storaged.cli.volume_query:key", "Print the key of a volume."),
    "name": Entry("storaged.cli.volume_query:name", "Print the name of a volume."),
    "pool": Entry("storaged.cli.volume_query:pool", "Print the pool of a volume."),
}

_JOB = {
    "list": Entry("storaged.cli.jobs:list_jobs", "List the long work under way."),
    "watch": Entry("storaged.cli.jobs:watch", "Show the progress of a job until its end."),
    "cancel": Entry(
        "storaged.cli.jobs:cancel", "Cancel a job and wait until it has put everything back."
    ),
}

_SECRET = {
    "list": Entry("storaged.cli.secrets:list_secrets", "List the secrets."),
    "info": Entry("storaged.cli.secrets:info", "Show what a secret is for; not its value."),
    "define-as": Entry("storaged.cli.secrets:define_as", "Define a secret from options."),
    "define": Entry("storaged.cli.secrets:define", "Define a secret from XML."),
    "set-value": Entry("storaged.cli.secrets:set_value", "Set the value of a secret."),
    "dumpxml": Entry(
        "storaged.cli.secrets:dumpxml", "Print a secret as XML; its value is not in it."
    ),
    "undefine": Entry("storaged.cli.secrets:undefine", "Forget a secret and its value."),
}

_SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.group(
    "pool",
    cls=LazyGroup,
    table=_POOL,
    aliases={"destroy": "stop"},
    context_settings=_SETTINGS,
    examples=(
        "storagectl pool ensure vms --type dir --target /srv/vms",
        "storagectl pool list --all --details",
        "storagectl pool define-as nfs1 netfs --source-host nas --source-path /vms --target /mnt",
        "storagectl pool start nfs1 --build",
        "storagectl pool stop nfs1",
    ),
)
def pool() -> None:
    """Work on pools: the places volumes are kept in.

    A pool is a directory, a volume group, an export of a server ... It is defined once, from
    options or XML, and then started and stopped. 'ensure' does all of that in one step and changes
    nothing that is right already. POOL is a name or a UUID. The words are virsh's: what it calls
    pool-list is 'pool list' here ('pool-list' works too).
    """


@click.group(
    "vol",
    cls=LazyGroup,
    table=_VOL,
    context_settings=_SETTINGS,
    examples=(
        "storagectl vol create-as vms web1.qcow2 20G --format qcow2 --backing-vol debian.qcow2",
        "storagectl vol list vms --details",
        "storagectl vol clone vms web1.qcow2 web2.qcow2",
        "storagectl vol info vms/web2.qcow2",
        "storagectl vol resize web2.qcow2 40G --pool vms",
        "storagectl vol delete web2.qcow2 --pool vms",
    ),
)
def vol() -> None:
    """Work on volumes: disk images and block devices.

    The pool must be active. VOL is a name together with --pool, or POOL/NAME in one word, or a
    path, or a key. Sizes take a unit, such as 20G or 512MiB. Volumes are made thin unless
    --allocation says otherwise. Long work shows its progress, and Ctrl-C cancels it without leaving
    anything half made.
    """


@click.group(
    "job",
    cls=LazyGroup,
    table=_JOB,
    context_settings=_SETTINGS,
    examples=("storagectl job list", "storagectl job watch 12", "storagectl job cancel 12"),
)
def job() -> None:
    """Work on jobs: long work under way in a daemon.

    ID is the number that 'job list' shows. Without a daemon a job belongs to the command that
    began it, shows its progress there, and is cancelled by Ctrl-C.
    """


@click.group(
    "secret",
    cls=LazyGroup,
    table=_SECRET,
    aliases={"show": "info"},
    context_settings=_SETTINGS,
    examples=(
        "storagectl secret define-as iscsi target1 --private",
        "storagectl secret set-value iscsi/target1",
        "storagectl secret list",
    ),
)
def secret() -> None:
    """Work on secrets: passwords and passphrases.

    A pool logs in to its server with one, an encrypted volume is opened with one: what defines
    them names a secret by its UUID or its usage. SECRET is a UUID, or KIND/ID in one word, such as
    iscsi/target1 or volume//srv/vms/web1.qcow2. The secrets are libvirt's: where its daemon of
    secrets runs, that one keeps them. A value comes from a file, a pipe or the terminal and is
    never shown.
    """
