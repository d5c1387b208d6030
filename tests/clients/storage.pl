# Calls every method that Sys::Virt has for storage, and prints what each answers:
#     storage.pl URI DIRECTORY
# One call a paragraph: its name, then its answer, or code and text of its error.

use strict;
use warnings;
use JSON::PP;
use Sys::Virt;
use Sys::Virt::Event;
use Sys::Virt::StoragePool;
use Sys::Virt::StorageVol;
use Sys::Virt::Stream;

my ($uri, $directory) = @ARGV;
my $json = JSON::PP->new->canonical->allow_nonref->allow_blessed;
$| = 1;

sub plain {
    my ($value) = @_;
    return $value->get_name if ref($value) && ref($value) =~ /^Sys::Virt::Storage/;
    return [map { plain($_) } @$value] if ref($value) eq "ARRAY";
    return $value;
}

# call NAME, CODE: run it in list context, print and return what it gave
sub call {
    my ($name, $code) = @_;
    my @values = eval { $code->() };
    if (my $error = $@) {
        die "$name: $error" unless ref($error) && $error->isa("Sys::Virt::Error");
        printf "%s\nerror %d %d %s\n\n", $name, $error->code, $error->domain, $error->message;
        return;
    }
    printf "%s\n%s\n\n", $name, $json->encode(plain(\@values));
    return wantarray ? @values : $values[0];
}

sub pool_xml {
    my ($name) = @_;
    return "<pool type='dir'><name>$name</name><target><path>$directory/$name</path></target></pool>";
}

sub volume_xml {
    my ($name, $capacity, $format) = @_;
    return "<volume><name>$name</name><capacity>$capacity</capacity><allocation>0</allocation>"
        . "<target><format type='$format'/></target></volume>";
}

Sys::Virt::Event::register_default();
my $conn = Sys::Virt->new(uri => $uri);
my @heard;
my $listener = call("listen", sub {
    $conn->storage_pool_event_register_any(
        undef, Sys::Virt::StoragePool::EVENT_ID_LIFECYCLE,
        sub { push @heard, [$_[1]->get_name, $_[2], $_[3]] });
});

call("type", sub { $conn->get_type });
call("library", sub { $conn->get_library_version });
call("version", sub { $conn->get_version });
call("hostname", sub { $conn->get_hostname });
call("secure", sub { $conn->is_secure });
call("encrypted", sub { $conn->is_encrypted });
call("alive", sub { $conn->is_alive });
call("capabilities", sub { $conn->get_capabilities });
call("pool capabilities", sub { $conn->get_storage_pool_capabilities });
call("domains", sub { $conn->list_all_domains });
call("node", sub { $conn->get_node_info });

my $pool = call("define", sub { $conn->define_storage_pool(pool_xml("perl")) });
call("define twice", sub { $conn->define_storage_pool(pool_xml("perl")) });
call("define nonsense", sub { $conn->define_storage_pool("<pool") });
call("inactive", sub { $conn->list_defined_storage_pools });
call("number inactive", sub { $conn->num_of_defined_storage_pools });
call("names inactive", sub { $conn->list_defined_storage_pool_names(100) });
call("build", sub { $pool->build(Sys::Virt::StoragePool::BUILD_NEW) });
call("create", sub { $pool->create });
call("create twice", sub { $pool->create });
call("active", sub { $conn->list_storage_pools });
call("number active", sub { $conn->num_of_storage_pools });
call("names active", sub { $conn->list_storage_pool_names(100) });
call("all", sub { sort map { $_->get_name } $conn->list_all_storage_pools });
call("all of a type", sub { $conn->list_all_storage_pools(Sys::Virt::StoragePool::LIST_RBD) });
call("name", sub { $pool->get_name });
call("uuid", sub { $pool->get_uuid_string eq $conn->get_storage_pool_by_uuid($pool->get_uuid)->get_uuid_string });
call("by uuid string", sub { $conn->get_storage_pool_by_uuid($pool->get_uuid_string) });
call("by name", sub { $conn->get_storage_pool_by_name("perl") });
call("by target", sub { $conn->get_storage_pool_by_target_path("$directory/perl") });
call("by no name", sub { $conn->get_storage_pool_by_name("nobody") });
call("is active", sub { $pool->is_active });
call("is persistent", sub { $pool->is_persistent });
call("info", sub { $pool->get_info });
call("xml", sub { $pool->get_xml_description });
call("autostart", sub { $pool->set_autostart(1); $pool->get_autostart });
call("no autostart", sub { $pool->set_autostart(0); $pool->get_autostart });
call("refresh", sub { $pool->refresh });

my $volume = call("volume", sub { $pool->create_volume(volume_xml("raw", 1048576, "raw")) });
my $qcow2 = call("qcow2", sub {
    $pool->create_volume(volume_xml("qcow2", 1048576, "qcow2"),
        Sys::Virt::StorageVol::CREATE_PREALLOC_METADATA);
});
call("volume twice", sub { $pool->create_volume(volume_xml("raw", 1, "raw")) });
my $clone = call("clone", sub { $pool->clone_volume(volume_xml("clone", 1048576, "raw"), $volume) });
call("volumes", sub { sort map { $_->get_name } $pool->list_volumes });
call("number", sub { $pool->num_of_storage_volumes });
call("names", sub { sort $pool->list_storage_vol_names(100) });
call("all volumes", sub { sort map { $_->get_name } $pool->list_all_volumes });
call("volume by name", sub { $pool->get_volume_by_name("raw") });
call("volume by path", sub { $conn->get_storage_volume_by_path($volume->get_path) });
call("volume by key", sub { $conn->get_storage_volume_by_key($volume->get_key) });
call("no volume by name", sub { $pool->get_volume_by_name("nobody") });
call("no volume by path", sub { $conn->get_storage_volume_by_path("/nowhere") });
call("no volume by key", sub { $conn->get_storage_volume_by_key("nothing") });
call("pool by volume", sub { $conn->get_storage_pool_by_volume($volume) });
call("volume's name", sub { $volume->get_name });
call("volume's key", sub { $volume->get_key });
call("volume's path", sub { $volume->get_path });
call("volume's info", sub { $volume->get_info });
call("volume's physical", sub { $qcow2->get_info(Sys::Virt::StorageVol::GET_PHYSICAL) });
call("volume's xml", sub { $qcow2->get_xml_description });

my $data = "storaged " x 20000;
call("upload", sub {
    my $stream = $conn->new_stream;
    $volume->upload($stream, 0, length($data));
    my $offset = 0;
    while ($offset < length($data)) {
        my $piece = substr($data, $offset, 65536);
        $offset += $stream->send($piece, length($piece));
    }
    $stream->finish;
});
call("download", sub {
    my $stream = $conn->new_stream;
    $volume->download($stream, 0, length($data));
    my $got = "";
    while (my $count = $stream->recv(my $piece, 65536)) {
        $got .= substr($piece, 0, $count);
    }
    $stream->finish;
    $got eq $data ? "the same" : "something else";
});
call("upload, all", sub {
    my $stream = $conn->new_stream;
    $volume->upload($stream, 4096, 0);
    my $offset = 0;
    $stream->send_all(sub {
        $_[1] = substr($data, $offset, $_[2]);
        $offset += length($_[1]);
        return length($_[1]);
    });
    $stream->finish;
});
call("download, sparse", sub {
    my $stream = $conn->new_stream;
    my @pieces;
    $volume->download($stream, 0, 0, Sys::Virt::StorageVol::VOL_DOWNLOAD_SPARSE_STREAM);
    $stream->sparse_recv_all(
        sub { push @pieces, "data $_[2]"; return $_[2] },
        sub { push @pieces, "hole $_[1]"; return 0 });
    $stream->finish;
    @pieces;
});
call("aborted download", sub {
    my $stream = $conn->new_stream;
    $volume->download($stream, 0, 0);
    $stream->abort;
});
call("resize", sub { $qcow2->resize(2097152); $qcow2->get_info });
call("grow by", sub { $qcow2->resize(1048576, Sys::Virt::StorageVol::RESIZE_DELTA); $qcow2->get_info });
call("shrink", sub { $clone->resize(4096) });
call("wipe", sub { $clone->wipe });
call("wipe by pattern", sub { $clone->wipe_pattern(Sys::Virt::StorageVol::WIPE_ALG_ZERO) });
call("trim", sub { $clone->wipe_pattern(Sys::Virt::StorageVol::WIPE_ALG_TRIM) });
call("delete", sub { $_->delete for ($clone, $qcow2) });
call("delete twice", sub { $clone->delete });
call("delete pool, active", sub { $pool->delete });
call("undefine, active", sub { $pool->undefine });
call("sources", sub { $conn->find_storage_pool_sources("dir", "") });
call("delete the last", sub { $volume->delete });
call("destroy", sub { $pool->destroy });
call("delete pool", sub { $pool->delete });
call("undefine", sub { $pool->undefine });
mkdir "$directory/fleeting";
my $fleeting = call("transient", sub { $conn->create_storage_pool(pool_xml("fleeting")) });
call("transient destroyed", sub { $fleeting->destroy });
call("transient gone", sub { $fleeting->get_info });

my $timer = Sys::Virt::Event::add_timeout(100, sub { });
for (1 .. 100) {
    last if @heard >= 8;
    Sys::Virt::Event::run_default();
}
call("heard", sub { @heard });
call("stop listening", sub { $conn->storage_pool_event_deregister_any($listener) });
