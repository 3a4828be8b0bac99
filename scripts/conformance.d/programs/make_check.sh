# A C project as it is developed: autotools, configure, make, make check, an incremental build, make distcheck.
# packages: gcc make autoconf automake libc6-dev
mkdir project
cd project
cat >configure.ac <<'END'
AC_INIT([sums], [1.0])
AM_INIT_AUTOMAKE([foreign subdir-objects])
AC_PROG_CC
AM_PROG_AR
AC_PROG_RANLIB
AC_CHECK_HEADERS([stdint.h sys/mman.h])
AC_CHECK_FUNCS([mmap])
AC_CONFIG_HEADERS([config.h])
AC_CONFIG_FILES([Makefile])
AC_OUTPUT
END
cat >Makefile.am <<'END'
noinst_LIBRARIES = libsums.a
libsums_a_SOURCES = src/sum.c src/product.c src/sums.h
bin_PROGRAMS = sums
sums_SOURCES = src/main.c
sums_LDADD = libsums.a
check_PROGRAMS = test-sum test-file
test_sum_SOURCES = test/sum.c
test_sum_LDADD = libsums.a
test_file_SOURCES = test/file.c
TESTS = $(check_PROGRAMS) test/run.sh
EXTRA_DIST = test/run.sh
END
mkdir src test
echo 'long sum(long a, long b); long product(long a, long b);' >src/sums.h
printf '#include "sums.h"\nlong sum(long a, long b) { return a + b; }\n' >src/sum.c
printf '#include "sums.h"\nlong product(long a, long b) { return a * b; }\n' >src/product.c
printf '#include <stdio.h>\n#include "sums.h"\nint main(void) { printf("%%ld\\n", product(sum(1, 2), 7)); return 0; }\n' >src/main.c
printf '#include "../src/sums.h"\nint main(void) { return sum(2, 3) == 5 && product(2, 3) == 6 ? 0 : 1; }\n' >test/sum.c
cat >test/file.c <<'END'
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
int main(void) {
    FILE *f = fopen("test-file.out", "w+");
    if (!f || fputs("mapped", f) < 0 || fflush(f)) return 1;
    char *p = mmap(0, 6, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(f), 0);
    if (p == MAP_FAILED || memcmp(p, "mapped", 6)) return 2;
    memcpy(p, "MAPPED", 6);
    if (msync(p, 6, MS_SYNC)) return 3;
    char b[7] = {0};
    rewind(f);
    if (fread(b, 1, 6, f) != 6 || strcmp(b, "MAPPED")) return 4;
    return remove("test-file.out") ? 5 : 0;
}
END
printf '#!/bin/sh\ntest "$(./sums)" = 21\n' >test/run.sh
chmod +x test/run.sh
# Each step sees the times of the one before it: nothing is made twice, nothing is forgotten.
AUTOMAKE='automake --add-missing' autoreconf -i
mkdir ../build
cd ../build
../project/configure -q
make -s -j2
make -s check >check.log 2>&1 || { cat check.log; exit 1; }
grep -q '^# PASS:  3$' check.log
test "$(make -n all | grep -c -- '-c -o')" = 0
printf '#include "sums.h"\nlong product(long a, long b) { return a * b + 1; }\n' >../project/src/product.c
test "$(make -n all | grep -c -- '-c -o')" = 1
make -s
test "$(./sums)" = 22
printf '#include "sums.h"\nlong product(long a, long b) { return a * b; }\n' >../project/src/product.c
make -s distcheck >distcheck.log 2>&1 || { tail -n 40 distcheck.log; exit 1; }
tar -tzf sums-1.0.tar.gz | grep sums-1.0/src/sums.h >/dev/null
