"""All targets by name."""

from __future__ import annotations

from collections.abc import Mapping

from fuzzing.target import Target
from fuzzing.targets import benchmarks
from fuzzing.targets.card import Card
from fuzzing.targets.chat import Chat
from fuzzing.targets.chat_request import ChatRequest
from fuzzing.targets.command_words import CommandWords
from fuzzing.targets.config import Config
from fuzzing.targets.data_urls import DataUrls
from fuzzing.targets.delta import Delta
from fuzzing.targets.endpoint import EndpointReplies
from fuzzing.targets.header import Header
from fuzzing.targets.http_bytes import HttpBytes
from fuzzing.targets.images import Images
from fuzzing.targets.index import Index
from fuzzing.targets.layers import Layers
from fuzzing.targets.loading import Loading
from fuzzing.targets.manifest import Manifest
from fuzzing.targets.plugin_words import PluginWords
from fuzzing.targets.plugins_file import PluginsFile
from fuzzing.targets.requirements import Requirements
from fuzzing.targets.results import Results
from fuzzing.targets.settings_file import SettingsFile
from fuzzing.targets.shard import Shard
from fuzzing.targets.side_files import SideFiles
from fuzzing.targets.signals import Signals
from fuzzing.targets.system_calls import SystemCalls

_ALL: tuple[type[Target], ...] = (
    Header,
    Shard,
    Index,
    Config,
    SideFiles,
    Card,
    Manifest,
    Delta,
    PluginsFile,
    Loading,
    Layers,
    PluginWords,
    SettingsFile,
    CommandWords,
    benchmarks.Pope,
    benchmarks.Repope,
    benchmarks.Chair,
    benchmarks.Mme,
    benchmarks.Amber,
    benchmarks.AmberYesNo,
    benchmarks.Hallusionbench,
    benchmarks.CocoCaption,
    benchmarks.Custom,
    benchmarks.Choice,
    Results,
    Requirements,
    Images,
    DataUrls,
    ChatRequest,
    Chat,
    HttpBytes,
    EndpointReplies,
    SystemCalls,
    Signals,
)
TARGETS: Mapping[str, type[Target]] = {target.name: target for target in _ALL}
