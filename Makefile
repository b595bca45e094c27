# es: event sourcing and CQRS inside PostgreSQL
#
#	make && sudo make install	build and install, as with any extension
#	make installcheck	the SQL tests against a running server that preloads es
#	make demo		the online store, in a throw-away cluster
#	make test		everything, in throw-away clusters
#	make test-faults	all faults of the matrix, and many rounds of each
#	make test-ubsan	the tests with the undefined behaviour sanitizer
#	make test-valgrind	the append, command and projection paths under valgrind
#	make test-assert	the tests on a server that is built with assertions
#	make fuzz		random queries and inputs, five minutes
#	make soak		a bounded load for an hour, watching memory and bloat
#	make bench		the benchmarks
#	make setup		the Debian packages that demo and test need
#
# ES_DEBUG=1 compiles the debugging aids in; COPT adds compiler flags.

EXTENSION = es
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" es.control)

MODULE_big = es
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))

# One script for each word of the design; the order is that of their needs.
SCRIPT = sql/$(EXTENSION)--$(EXTVERSION).sql
SCRIPT_PARTS = $(patsubst %,sql/%.sql, \
	header store command projection rebuild fanout monitor)

DATA = $(wildcard sql/$(EXTENSION)--*--*.sql)
DATA_built = $(SCRIPT)

# pg_regress looks into sql/ before test/sql/, so that a test must not be named
# like a part of the script (test/lint/orphans.pl checks that).
REGRESS = $(patsubst test/sql/%.sql,%,$(sort $(wildcard test/sql/*.sql)))
REGRESS_OPTS = --inputdir=test --load-extension=$(EXTENSION)
ISOLATION = $(patsubst test/isolation/specs/%.spec,%, \
	$(sort $(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation --outputdir=. \
	--load-extension=$(EXTENSION)

# PostgreSQL's own headers are not clean under the last two.
PG_CPPFLAGS = -I$(srcdir)/src -DES_VERSION='"$(EXTVERSION)"' $(if $(filter 1,$(ES_DEBUG)),-DES_DEBUG)
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare

# The server's flags were chosen for gcc; clang warns of what it lacks.
ifneq ($(findstring clang,$(CC)),)
PG_CFLAGS += -Wno-unknown-warning-option -Wno-ignored-optimization-argument \
	-Wno-ignored-attributes -Wno-compound-token-split-by-macro
endif

# Bitcode lets the server inline SQL functions into JIT-compiled expressions,
# which gains nothing here and needs a clang: only for those who ask for it.
ifneq ($(origin with_llvm),command line)
override with_llvm := no
endif

EXTRA_CLEAN = $(OBJS:.o=.gcno) $(OBJS:.o=.gcda)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)

# On a bare machine there is no PGXS until `make setup`, which demo and test do.
ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
else
all install installcheck clean:
	@echo "no PGXS: $(PG_CONFIG) is missing or lacks the server's headers;" >&2
	@echo "'make setup' installs what is needed on Debian" >&2
	@false
endif

# PGXS does not track headers.
$(OBJS): $(wildcard src/*.h src/*/*.h)

$(SCRIPT): $(SCRIPT_PARTS) es.control
	cat $(SCRIPT_PARTS) > $@

setup:
	test/setup

# TESTS="tap" or TESTS="t/002_crash.pl" runs a part.
test:
	test/run $(TESTS)

# KEEP=1 opens psql in the store when the demo has ended.
test-faults test-ubsan test-valgrind test-assert fuzz:
	test/checks $@

soak:
	ES_SOAK=$${ES_SOAK:-3600} test/run t/068_soak.pl

demo:
	demo/run

bench:
	bench/run

.PHONY: setup test demo bench \
	test-faults test-ubsan test-valgrind test-assert fuzz soak
.DELETE_ON_ERROR:
