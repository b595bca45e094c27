# lib.sh
#	  What test/run and test/cluster share: a scratch copy of the tree, a build
#	  of it, and a throw-away cluster that has the result loaded.
#
# Nothing is written into the tree or into the server's directories.  The tree
# is copied, since PostgreSQL refuses to run as root and so the user "postgres"
# has to do the work, who need not be able to read the tree, let alone to write
# it.  The build is installed under a prefix, where Debian's server finds it by
# the setting extension_destdir.
#
#	ES_PG_CONFIG	the pg_config of another server than Debian's, see test/checks
#
# Sets: tree, scratch, copy, stage, major, pg_config.

# The environment of the caller must not reach the test clusters.
for name in ${!PG@}
do
	[[ $name == PG_* ]] || unset "$name"
done
unset name MAKEFLAGS MFLAGS MAKELEVEL
export LC_ALL=C.UTF-8

tree=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
major=${PG_MAJOR:-15}
pg_config=${ES_PG_CONFIG:-/usr/lib/postgresql/$major/bin/pg_config}

# Run a command as a user whom PostgreSQL accepts.
as_tester()
{
	if ((EUID == 0))
	then
		runuser -u postgres -- "$@"
	else
		"$@"
	fi
}

# Create the scratch directory with a clean copy of the tree.
prepare()
{
	"$tree/test/setup"

	scratch=$(mktemp -d "${TMPDIR:-/tmp}/es.XXXXXX")
	trap cleanup EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM

	copy=$scratch/es
	stage=$scratch/stage
	mkdir "$copy" "$stage" "$scratch/tmp"
	tar -C "$tree" --exclude=./.git --exclude='*.o' --exclude='*.so' \
		--exclude='*.bc' --exclude='*.gc??' -cf - . | tar -C "$copy" -xf -

	# Everything that makes temporary files makes them in the scratch directory,
	# and nobody reads a start-up file of the caller.
	export HOME=$scratch TMPDIR=$scratch/tmp

	chmod 755 "$scratch"
	((EUID != 0)) || chown -R postgres: "$scratch"
	cd "$copy"
}

# Compile the copy and install it under the prefix.
build()
{
	compile "$copy" &&
		as_tester make -s -C "$copy" install PG_CONFIG="$pg_config" DESTDIR="$stage"
}

# compile DIRECTORY [make's variable=value ...]: any warning is an error.
compile()
{
	local directory=$1

	shift
	as_tester env COPT="-Werror ${COPT:-}" make -s -j "$(nproc)" \
		-C "$directory" PG_CONFIG="$pg_config" "$@" all
}

# in_cluster [-o guc=value ...] COMMAND ...: run it in a throw-away cluster.
in_cluster()
{
	local libdir start=(as_tester env PG_CONFIG="$pg_config" PGPORT="$(free_port)" pg_virtualenv -v "$major")

	libdir=$("$pg_config" --pkglibdir)
	[[ ! ${ES_PG_CONFIG:-} ]] || start=(in_cluster_of_other_server)
	"${start[@]}" \
		-o shared_preload_libraries=es \
		-o extension_destdir="$stage" \
		-o dynamic_library_path="$stage$libdir:$libdir" \
		-o max_worker_processes=16 \
		"$@"
}

# The same with a server that is not where Debian has its own.
in_cluster_of_other_server()
{
	local bin data port status=0

	bin=$("$pg_config" --bindir)
	data=$(as_tester mktemp -d "$scratch/cluster.XXXXXX")
	port=$(free_port)
	as_tester "$bin/initdb" -D "$data" -A trust -N >/dev/null
	while [[ $1 == -o ]]
	do
		printf "%s = '%s'\n" "${2%%=*}" "${2#*=}"
		shift 2
	done >>"$data/postgresql.conf"
	as_tester "$bin/pg_ctl" -s -w -D "$data" -l "$data.log" \
		-o "-p $port -c unix_socket_directories=$data -c fsync=off" start
	as_tester env PG_CONFIG="$pg_config" PATH="$bin:$PATH" PGHOST=localhost PGPORT="$port" "$@" || status=$?
	as_tester "$bin/pg_ctl" -s -w -D "$data" -m fast stop
	return "$status"
}

# A port at random, since two runs at a time would find the same first free one.
free_port()
{
	local port

	while port=$((RANDOM % 20000 + 10000))
		(: <"/dev/tcp/localhost/$port") 2>/dev/null
	do
		continue
	done
	echo "$port"
}

# Leave nothing running and nothing lying about.  Every server stops itself;
# this is for what an interrupted test could not stop.
cleanup()
{
	local status=$? attempt

	trap '' HUP INT TERM
	cd /
	for attempt in {1..50}
	do
		stop_leftovers || break
		sleep 0.1
	done
	! mountpoint -q "$scratch/small" || umount "$scratch/small"
	if [[ ${ES_KEEP:-} ]]
	then
		echo "kept: $scratch"
	else
		rm -rf "$scratch"
	fi
	exit "$status"
}

# Tell all that runs in the scratch directory to end, which means QUIT to a server
# and TERM to the rest; false if nothing does.
stop_leftovers()
{
	local found=false process

	for process in /proc/[0-9]*
	do
		[[ $(readlink "$process/cwd") == "$scratch"/* ]] || continue
		found=true
		kill -QUIT "${process#/proc/}" && kill -TERM "${process#/proc/}"
	done 2>/dev/null
	$found
}
