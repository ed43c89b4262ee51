package main

// sections are the questions. What close does they don't rely on: Linux tells a FUSE
// file system of it when it has returned, so that locks end a moment later. In them 65534 owns what 65533 does not, and 100 to
// 102 are groups.
var sections = []section{
	{"names", `
make {file,dir,fifo,block,char,socket,symlink} @255
lstat @255
namemax .
make {file,dir,fifo,block,char,socket,symlink} @256
link @255 @256
rename @255 @256
lstat @256

make dir d
make {file,dir,fifo,block,char,socket,symlink} d/f/@@4095
lstat d/f/@@4095
lstat d/f/@@4096
chmod d/f/@@4096 0600
chown d/f/@@4096 1 1
truncate d/f/@@4096 1
unlink d/f/@@4096
rmdir d/f/@@4096
link d/f/@@4096 g
link d/f g/@@4096
rename d/f/@@4096 g
rename d/f g/@@4096
symlink x g/@@4096
make {file,dir,fifo,block,char,socket,symlink} g/@@4096
open d/f/@@4096 RDONLY
utimens d/f/@@4096 1 0 1 0

symlink @4095 l
readlink l
lstat l
symlink @4096 m

symlink EMPTY l
lstat EMPTY
make {file,dir,fifo,socket,symlink} EMPTY
unlink EMPTY
rmdir EMPTY
rename EMPTY x
rename . x
rename x EMPTY
chmod EMPTY 0644
open EMPTY RDONLY

make {file,fifo,block,char,socket} f
make {dir,file,fifo,symlink} f/g
lstat f/g
stat f/
lstat f/
open f/g RDONLY
open f/g CREAT|WRONLY 0644
open f/ RDONLY
chmod f/g 0644
chown f/g 1 1
lchown f/g 1 1
truncate f/g 1
unlink f/g
rmdir f/g
rmdir f
link f/g h
link f g/h
rename f/g h
rename f f/h
symlink x f/g
readlink f/g
utimens f/g 1 0 1 0
access f/g 0
setxattr f/g user.x y
chdir f

lstat none
lstat none/f
chmod none 0644
chown none 1 1
truncate none 1
unlink none
rmdir none
link none x
rename none x
open none RDONLY
open none/f CREAT|WRONLY 0644
make {file,dir,fifo,block,char,socket,symlink} none/f
make file f
link f none/f
rename f none/f
readlink none
utimens none 1 0 1 0
getxattr none user.x

symlink a b
symlink b a
stat a
lstat a
stat a/f
open a RDONLY
open a/f CREAT|WRONLY 0644
open a CREAT|WRONLY 0644
open a CREAT|EXCL|WRONLY 0644
chmod a 0644
chmod a/f 0644
chown a 1 1
lchown a 1 1
truncate a 1
unlink a/f
rmdir a/f
link a/f x
link b/f x
rename a/f x
make file f
rename f a/x
link f a/x
make {dir,fifo,block,char,socket,symlink} a/x
make {dir,fifo,block,char,socket,symlink} a
utimens a/x 1 0 1 0
access a 4

make file c41
chain c 40
stat c1
stat c2
open c1 RDONLY
open c2 RDONLY
chmod c1 0600

make dir d
rmdir d/.
rmdir d/..
rmdir .
unlink d/.
unlink .
rename d/. e
rename . e
rename d/.. e
rename d .
rename d d/.
rename d d/..
make dir .
make dir d/..
make file .
link . e
symlink x .
make dir d/e/
stat d/e/
rmdir d/e/
make file d/f
rename d/f d/g/
rename d/f/ d/g
unlink d/f/
link d/f/ d/g
link d/f d/g/
symlink d l
lstat l/
stat l/f
unlink l/
rmdir l
rmdir l/
rename l/ m
rename d e/
stat l

mkdirs d 60
stat d/d/d/d
rmdir d
rename d e
rename e e/d/d/d/f
`},

	{"create", `
umask {0,022,077,0777}
make {file,dir,fifo,block,char,socket,reg} f {0,0644,0755,0777,01777,02777,04777,07777}
lstat f

chmod . {0777,02777}
chown . 65533 100
as 65534:101 make {file,dir,fifo,socket,symlink} f
lstat f
as 65534:100 make {file,dir,fifo,socket,symlink} g
lstat g
as 65534:101:100 make {file,dir,fifo,socket,symlink} h
lstat h
make {file,dir,fifo,socket,symlink} i
lstat i

chmod . 02777
chown . 65533 100
as 65534:101 make {file,dir,fifo,socket} f {02755,02745,02777,04777,06711}
lstat f
as 65534:101:100 make {file,dir,fifo,socket} g {02755,02745,02777,04777,06711}
lstat g

moves . make {file,dir,fifo,block,char,socket,symlink} f
moves . make {file,dir,fifo,block,char,socket,symlink} f
make {file,dir,fifo,block,char,socket,symlink} g
moves . unlink g
moves . rmdir g
moves . symlink x l
moves . unlink l

make {file,dir,fifo,block,char,socket,symlink} f
make {dir,file,fifo,symlink,socket} f
open f CREAT|EXCL|WRONLY 0644
symlink x f
make file g
link g f

as 65534 make {block,char} f
as 65534 make {fifo,socket,reg} g
chmod . 0755
as 65534 make {file,dir,fifo,socket,symlink} h
as 65534 make {block,char} h

make dir d 0777
chown d 65534 65534
as 65534 chmod d {0,0100,0200,0300,0400,0500,0600,0700}
as 65534 make {file,dir,fifo,socket,symlink} d/f
as 65534 lstat d/f
as 65534 ls d
as 65534 chdir d
as 65534 access d 7
chdir ..
as 65533 make {file,dir,fifo,socket,symlink} d/g
as 65533 lstat d/g

make dir d 0755
chown d 65534 65534
as 65534 make file d/f
as 65534 chmod d 0644
as 65534 chmod d/f 0600
as 65534 chown d/f 65534 65534
as 65534 truncate d/f 1
as 65534 utimens d/f 0 NOW 0 NOW
as 65534 unlink d/f
as 65534 link d/f g
as 65534 rename d/f g
as 65534 open d/f RDONLY
as 65534 readlink d/f
as 65534 access d/f 0
as 65534 getxattr d/f user.x
chmod d 0555
as 65534 unlink d/f
as 65534 rename d/f d/g
as 65534 rename d/f g
as 65534 make file h
as 65534 rename h d/h
as 65534 link h d/h
as 65534 link d/f i
as 65534 symlink x d/l
`},

	{"open", `
make file f 0
chown f 65534 100
chmod f {0,01,02,03,04,05,06,07,010,020,040,060,070,0100,0200,0400,0600,0700,0777}
as 65534:101 open f {RDONLY,WRONLY,RDWR,RDONLY|TRUNC,WRONLY|TRUNC,WRONLY|APPEND,PATH}
as 65533:100 open f {RDONLY,WRONLY,RDWR,RDONLY|TRUNC,WRONLY|TRUNC,WRONLY|APPEND,PATH}
as 65533:101:100 open f {RDONLY,WRONLY,RDWR,RDONLY|TRUNC,WRONLY|TRUNC,WRONLY|APPEND,PATH}
as 65533:101 open f {RDONLY,WRONLY,RDWR,RDONLY|TRUNC,WRONLY|TRUNC,WRONLY|APPEND,PATH}
open f {RDONLY,WRONLY,RDWR,RDONLY|TRUNC,WRONLY|TRUNC,WRONLY|APPEND,PATH}

make file f 0
chown f 65534 100
chmod f {0,01,02,03,04,05,06,07,010,020,040,060,070,0100,0200,0400,0600,0700,0777}
as 65534:101 access f 1
as 65534:101 access f 2
as 65534:101 access f 4
as 65533:100 access f 1
as 65533:100 access f 6
as 65533:101 access f 1
as 65533:101 access f 2
as 65533:101 access f 4
access f 1
access f 7

make {file,dir,fifo,socket} f
open f {RDONLY,WRONLY,RDWR,WRONLY|TRUNC,RDONLY|DIRECTORY,RDONLY|NOFOLLOW,WRONLY|CREAT,RDONLY|CREAT,RDWR|CREAT|EXCL,WRONLY|CREAT|TRUNC,RDONLY|CREAT|DIRECTORY,PATH,PATH|NOFOLLOW,PATH|DIRECTORY}|NONBLOCK 0644
symlink f l
open l {RDONLY,WRONLY,RDWR,WRONLY|TRUNC,RDONLY|DIRECTORY,RDONLY|NOFOLLOW,WRONLY|CREAT,RDONLY|CREAT,RDWR|CREAT|EXCL,WRONLY|CREAT|TRUNC,RDONLY|CREAT|DIRECTORY,PATH,PATH|NOFOLLOW,PATH|DIRECTORY}|NONBLOCK 0644

symlink none l
open l CREAT|EXCL|WRONLY 0644
open l NOFOLLOW|CREAT|WRONLY 0644
lstat none
open l CREAT|WRONLY 0640
lstat none
lstat l

umask 022
moves . open f CREAT|WRONLY 0666 F
fstat F
moves . open f CREAT|WRONLY 0600
moves f open f CREAT|TRUNC|WRONLY 0600
moves F write F 100
moves f open f RDONLY
moves f open f TRUNC|WRONLY
fstat F
moves f open f TRUNC|WRONLY
write F 10
fstat F
cat f

open f CREAT|EXCL|RDWR 0 F
write F 5
pread F 0 10
fstat F
open f CREAT|RDONLY 0400
as 65534 open f RDONLY
as 65534 open f NOATIME|RDONLY

open f CREAT|RDWR|APPEND 0644 F
write F 10
pwrite F 3 4
seek F 0 CUR
open f RDWR 0 G
pwrite G 2 3
cat f
ftruncate G 5
write F 3
cat f
seek F 0 SET
write F 2
cat f

open f CREAT|RDONLY 0644 F
write F 1
ftruncate F 1
fallocate F 0 0 10
open f WRONLY 0 G
pread G 0 1
make dir d
open d RDONLY|DIRECTORY 0 D
write D 1
pread D 0 1
ftruncate D 0
fsync D
fsync F

make file b
exec b open b WRONLY;open b RDWR;open b WRONLY|TRUNC;truncate b 0;open b RDONLY;rename b c;lstat c;unlink c;lstat c

exec b chmod b 0700;chown b 1 1;link b c;open c WRONLY;open b CREAT|WRONLY 0644;unlink b

open . TMPFILE|{RDWR,WRONLY} 0640 F
fstat F
write F 9
ls .
flink F f
fstat F
lstat f
cat f
flink F f

open . TMPFILE|RDWR|EXCL 0640 F
flink F f
open . TMPFILE|RDONLY 0640
make file g
open g TMPFILE|RDWR 0640
chmod . 0755
as 65534 open . TMPFILE|RDWR 0640

umask 077
chmod . 02777
chown . 0 100
as 65534:101 open . TMPFILE|RDWR 0666 F
fstat F
`},

	{"chmod", `
make {file,dir,fifo,block,char,socket} f
chown f 65534 100
moves f chmod f {0,0111,0644,0777,01777,02777,04777,07777,02755,02745,06555}
lstat f
as 65534:100 chmod f {0,0111,0644,0777,01777,02777,04777,07777,02755,02745,06555}
lstat f
as 65534:101 chmod f {0,0111,0644,0777,01777,02777,04777,07777,02755,02745,06555}
lstat f
as 65534:101:100 chmod f {0,0111,0644,0777,01777,02777,04777,07777,02755,02745,06555}
lstat f
moves f as 65533 chmod f 0600

make {file,dir,fifo,block,char,socket,symlink} f
symlink f l
chmod l 0611
stat l
lstat l
lchmod f 0600
lchmod l 0600
lstat f

make {file,dir} f
chown f 65534 65534
open f RDONLY 0 F
fchmod F 07711
fstat F
moves F fchmod F 0640
lstat f
unlink f
fchmod F 0600
fstat F
as 65533 fchmod F 0777
`},

	{"chown", `
make {file,dir,fifo,block,char,socket,symlink} f
moves f lchown f 123 456
lstat f
moves f lchown f -1 457
moves f lchown f 124 -1
moves f lchown f -1 -1
lstat f
lchown f 65534 65533
moves f as 65534:100:101 lchown f -1 101
moves f as 65534:100:101 lchown f 65534 100
moves f as 65534:100:101 lchown f -1 -1
lstat f
as 65534:100:101 lchown f -1 102
as 65534:100:101 lchown f 65533 -1
as 65534:100:101 lchown f 65533 100
as 65533:100:101 lchown f -1 100
as 65533:100:101 lchown f 65534 100
as 65533:100:101 lchown f -1 -1
lstat f

make {file,dir,fifo,block,char,socket} f
symlink f l
chown f 65534 100
chmod f {0555,02555,02444,04555,06555,06444,07777,06711,06600}
chown f 65533 101
lstat f
chown f 65534 100
chmod f {0555,02555,02444,04555,06555,06444,07777,06711,06600}
as 65534:100:101 chown f -1 101
lstat f
chmod f {0555,02555,02444,04555,06555,06444,07777,06711,06600}
as 65534:100:101 chown l 65534 -1
stat l
chmod f {0555,02555,02444,04555,06555,06444,07777,06711,06600}
as 65534:100:101 chown l -1 -1
lstat f
chmod f {0555,02555,02444,04555,06555,06444,07777,06711,06600}
lchown l 5 5
lstat l
lstat f

make {file,dir} f
open f RDONLY 0 F
moves F fchown F 65534 100
unlink f
fchown F 1 1
fstat F
`},

	{"link", `
make {file,fifo,block,char,socket,symlink} f
moves f link f g
moves . link f h
lstat h
same f g
lchown g 65534 100
lstat f
moves f unlink g
lstat f
moves . unlink f
lstat h
link f i
link h h

make dir d
link d e
as 65534 link d e
make file f
symlink f l
link l m
lstat m
same l m
symlink none n
link n o
lstat o
open f WRONLY 0 F
link f g
unlink f
unlink g
fstat F
flink F h

make {file,dir,fifo,symlink} f
make {dir,file,fifo,symlink} g
link f g
as 65534 link f h
chmod . 0755
as 65534 link f i

make file f 0600
as 65534 link f g
make file h 0666
as 65534 link h i
lstat h
chown h 65534 65534
as 65534 link h j
`},

	{"unlink", `
make {file,dir,fifo,block,char,socket,symlink} f
moves . unlink f
moves . rmdir f
lstat f
unlink f

make {file,dir} d
make dir e
make {file,dir,symlink} e/f
moves . rmdir e
moves e rmdir e
unlink e
as 65534 unlink e
as 65534 rmdir e
lstat e

make file f
open f RDWR 0 F
link f g
write F 5
moves F unlink f
fstat F
moves F unlink g
fstat F
moves F write F 5
pread F 0 20
ftruncate F 3
fstat F
fchmod F 0600
fchown F 5 5
fstat F
make file f
fstat F
pread F 0 20

make dir d
open d DIRECTORY|RDONLY 0 D
chdir d
rmdir ../d
fstat D
ls .
make file f
make dir e
lstat .
lstat ..
chdir ..

chmod . 01777
chown . 65533 65533
make {file,dir,fifo,symlink} f
lchown f 65534 65534
as 65532 unlink f
as 65532 rmdir f
as 65532 rename f g
as 65534 rename f g
as 65534 unlink g
as 65534 rmdir g

chmod . 01777
chown . 65533 65533
make {file,dir,fifo,symlink} f
as 65533 unlink f
as 65533 rmdir f
lstat f

chmod . 01777
make {file,dir} f
make {dir,file} g
chown f 65534 65534
chown g 65532 65532
as 65534 rename f g
as 65534 rename f g EXCHANGE
as 65532 rename f g
rename f g
lstat g
`},

	{"rename", `
make {file,dir,fifo,block,char,socket,symlink} a
make {dir,file,fifo,block,char,socket,symlink} b
lchown a 1 1
lchown b 2 2
rename a b {0,NOREPLACE,EXCHANGE,NOREPLACE|EXCHANGE,8}
lstat a
lstat b

make {file,dir,fifo,block,char,socket,symlink} a
moves a rename a b
moves . rename b c
lstat c
make dir d
moves . rename c d/e
moves d rename d/e c
moves d rename c d/e
lstat .
lstat d
rename d/e e NOREPLACE
rename e none EXCHANGE
rename e f/g

make dir a
make dir b
make {file,dir,symlink} b/f
rename a b
rename b a
lstat a
lstat b
ls a

make dir a
make dir a/b
make dir a/b/c
rename a a/b
rename a a/b/c
rename a a/x
rename a/b a
rename a/b/c a
rename a/b a/b/c/d
rename a/b a/b
rename a a/b EXCHANGE
rename a/b/c a EXCHANGE
rename a/b b
lstat a
lstat b
lstat .

make file a
link a b
moves a rename a b
lstat a
lstat b
rename a a
make file c
open c RDONLY 0 F
rename a c
fstat F
lstat c
unlink b
rename c d
lstat d

make dir d 0777
make dir e 0777
make dir d/s
chown d/s 65534 65534
as 65534 rename d/s e/s
lstat d
lstat e
chown e/s 65533 65533
as 65534 rename e/s d/s
as 65534 rename e/s e/t
chmod d {0555,0666,0333,0777}
as 65534 rename e/t d/t
as 65533 rename e/t d/t
as 65533 rename d/t e/u
as 65533 rename e/none d/x

chmod . {0777,01777}
make dir d {0777,01777,0755}
chown d 65533 65533
make {file,dir} d/f
chown d/f 65534 65534
make {dir,file} g
chown g 65532 65532
as 65534 rename d/f h
as 65533 rename d/f i
as 65532 rename d/f j
as 65534 rename g d/f
as 65533 rename g d/f
as 65532 rename g d/f
as 65532 rename g k
ls .
ls d

make file a
make dir d
symlink d l
rename a l
lstat l
cat l
symlink d m
make file b
rename b m/x
ls d
rename m n
lstat n
rename d n
rename n d
`},

	{"truncate", `
make file f
truncate f 12345
lstat f
moves f truncate f 123
moves f truncate f 123
moves f truncate f 0
moves f truncate f 0
truncate f -1
open f RDWR 0 F
moves F ftruncate F 1000
pwrite F 100 10
moves F ftruncate F 105
ftruncate F 200
cat f
ftruncate F -1
ftruncate F 0x7fffffffffffffff

make {dir,fifo,block,char,socket,symlink} f
truncate f 0

make file f 0644
as 65534 truncate f 1
moves f as 65534 truncate f 5
chmod f 0666
as 65534 truncate f 7
lstat f
symlink f l
truncate l 3
lstat f

make file f
chown f 65533 100
chmod f {04777,06777,02777,02767,06666,02755}
as 65534:101 truncate f 10
lstat f
chmod f {04777,06777,02777,02767,06666,02755}
as 65534:101 open f WRONLY|TRUNC
lstat f
chmod f {04777,06777,02777,02767,06666,02755}
as 65534:101 open f WRONLY 0 F
as 65534:101 write F 10
lstat f
chmod f {04777,06777,02777,02767,06666,02755}
write F 10
lstat f
chmod f {04777,06777,02777,02767,06666,02755}
as 65533:100 write F 10
lstat f
chmod f {04777,06777,02777,02767,06666,02755}
as 65534:101 fallocate F 0 0 100
lstat f
chmod f {04777,06777,02777,02767,06666,02755}
as 65534:101 ftruncate F 0
lstat f
chmod f {04777,06777,02777,02767,06666,02755}
truncate f 3
lstat f
`},

	{"utimens", `
make {file,dir,fifo,block,char,socket,symlink} f
moves f utimens f {1,0,-1,2147483648,4294967296,8589934592} 0 {1234567,2147483647,-2147483647,10000000000} 5
times f

make {file,dir,fifo,block,char,socket,symlink} f
moves f utimens f 1 {0,1,999999999} -2 {1,0,999999999}
times f
moves f utimens f 0 OMIT 99 0
times f
utimens f 98 0 0 OMIT
times f
moves f utimens f 0 OMIT 0 OMIT
times f
utimens f 1 1000000000 1 0
utimens f 1 0 1 -1
times f

make file f {0644,0666,0444,0600}
chown f 65534 100
as 65533 utimens f 0 NOW 0 NOW
as 65533 utimens f 0 OMIT 0 OMIT
as 65533 utimens f 0 NOW 0 OMIT
as 65533 utimens f 0 OMIT 0 NOW
as 65533 utimens f 1 0 0 NOW
as 65533 utimens f 1 0 2 0
as 65534 utimens f 1 0 2 0
times f
as 65534 utimens f 0 NOW 3 0
as 65534 utimens f 4 0 0 NOW
as 65534 utimens f 0 NOW 0 NOW
`},

	{"fallocate", `
open f CREAT|RDWR 0644 F
fallocate F {0,KEEP,PUNCH,PUNCH|KEEP,ZERO,ZERO|KEEP} {0,10,4096,5000} {0,-1,100,4096,20000}
fstat F
write F 10000
moves F fallocate F {0,KEEP,PUNCH,PUNCH|KEEP,ZERO,ZERO|KEEP} {0,10,4096,5000} {0,-1,100,4096,20000}
fstat F
cat f
fallocate F {0,KEEP,PUNCH,PUNCH|KEEP,ZERO,ZERO|KEEP} -1 10
fallocate F {0,KEEP,PUNCH,PUNCH|KEEP,ZERO,ZERO|KEEP} 0x7ffffffffffffff0 100
close F
open f WRONLY|APPEND 0 F
fallocate F {0,KEEP,PUNCH,PUNCH|KEEP,ZERO,ZERO|KEEP} 100 10
fstat F

make {fifo,dir} f
open f RDONLY|NONBLOCK 0 F
fallocate F 0 0 10

open f CREAT|RDWR 0644 F
seek F 0 {DATA,HOLE}
ftruncate F 1024k
seek F 0 {DATA,HOLE}
pwrite F 128k 64k
pwrite F 512k 64k
fsync F
seek F 0 {DATA,HOLE}
seek F 128k {DATA,HOLE}
seek F 150000 {DATA,HOLE}
seek F 192k {DATA,HOLE}
seek F 500k {DATA,HOLE}
seek F 600k {DATA,HOLE}
seek F 1024k {DATA,HOLE}
seek F 2000k {DATA,HOLE}
seek F -1 {DATA,HOLE}
seek F 5 SET
seek F -10 CUR
seek F -10 END
seek F 0 9
pread F 100k 64k

open f CREAT|RDWR 0644 F
pwrite F 0x10000000000 10
fstat F
fsync F
seek F 0 {DATA,HOLE}
pread F 0x10000000000 100
pread F 0xeffffffffff 3
ftruncate F 0xeffffffffff
seek F 0 {DATA,HOLE}
fstat F
pwrite F -1 10
pwrite F 0x7fffffffffffffff 10

open f CREAT|RDWR 0644 F
open g CREAT|RDWR 0644 G
pwrite F 0 100000
copy F 0 G 0 100000
fstat G
copy F 0 G 50 10
copy F 10 F 200000 5000
copy F 0 F 10 100
copy F 100000 G 0 100
copy F 300000 G 0 100
moves G copy F 10 G 300000 64k
moves F copy F 10 G 300000 64k
copy F 0 G 0 0
cat g
open f RDONLY 0 R
copy F 0 R 0 10
open g WRONLY 0 W
copy W 0 F 0 10
open f RDWR|APPEND 0 A
copy G 0 A 0 10
fstat A
make dir d
open d RDONLY 0 D
copy D 0 G 0 10
copy G 0 D 0 10

open f CREAT|RDWR 0644 F
pwrite F 0 10000
mmap F 0 4096 m
pread F 0 10000
moves F mmap F 4096 8192 n
cat f
fstat F
open f RDONLY 0 R
mmap R 0 4096 x
ftruncate F 5000
ftruncate F 9000
cat f
open f RDWR|DIRECT 0 D
seek D 0 END
fsync D
`},

	{"locks", `
open f CREAT|RDWR 0644 F
open f RDWR 0 G
lock F WRLCK 10 10
lock G WRLCK 15 1
lock G RDLCK 15 1
getlock G WRLCK 0 0
getlock G RDLCK 0 10
lock G WRLCK 0 10
lock G WRLCK 20 0
getlock F WRLCK 0 0
getlock F WRLCK 20 5
lock F UNLCK 12 3
lock G WRLCK 12 3
getlock G WRLCK 10 2
getlock G RDLCK 15 100
lock F RDLCK 15 5
lock G RDLCK 16 2
lock F WRLCK 15 5
lock F UNLCK 0 0
lock G WRLCK 0 0
open f RDONLY 0 R
lock R WRLCK 0 1
open f WRONLY 0 W
lock W RDLCK 0 1
lock G WRLCK -5 3
lock G WRLCK 5 -5
getlock R RDLCK 0 0

open f CREAT|RDWR 0644 F
open f RDONLY 0 G
flock F EX
flock G SH
flock F SH
flock G SH
flock F EX
flock G UN
flock F EX
flock F UN
flock G EX
open f RDWR 0 H
lock H WRLCK 0 0
flock H SH
`},

	{"xattr", `
make {file,dir,fifo,block,char,socket,symlink} f
moves f setxattr f {user,trusted,security,system,nonsense}.a value
getxattr f {user,trusted,security,system,nonsense}.a
listxattr f
setxattr f {user,trusted,security,system,nonsense}.a other CREATE
setxattr f {user,trusted,security,system,nonsense}.a other REPLACE
setxattr f {user,trusted,security,system,nonsense}.b other REPLACE
getxattr f {user,trusted,security,system,nonsense}.a 2
getxattr f {user,trusted,security,system,nonsense}.a 0
as 65534 getxattr f {user,trusted,security,system,nonsense}.a
as 65534 setxattr f {user,trusted,security,system,nonsense}.a x
as 65534 removexattr f {user,trusted,security,system,nonsense}.a
as 65534 listxattr f
moves f removexattr f {user,trusted,security,system,nonsense}.a
removexattr f {user,trusted,security,system,nonsense}.a
listxattr f

make file f
setxattr f user.@250 value
getxattr f user.@250
setxattr f user.@251 value
setxattr f user. value
setxattr f user value
setxattr f EMPTY value
setxattr f user.e EMPTY
getxattr f user.e
setxattr f user.long @2000
getxattr f user.long
setxattr f user.a a CREATE|REPLACE
listxattr f
chown f 65534 100
as 65534:100 setxattr f user.mine yes
chmod f 0444
as 65534:100 setxattr f user.mine no
as 65533 getxattr f user.mine
chmod f 0400
as 65533 getxattr f user.mine

make dir d 01777
as 65534 setxattr d user.a b
make dir e 0777
as 65534 setxattr e user.a b
`},

	{"acl", `
make {file,dir} f 0640
chown f 65534 100
moves f setacl f access u:6 u65533:4 g:4 m:6 o:0
getacl f access
lstat f
listxattr f
as 65533:7 open f RDONLY
as 65533:7 access f 2
as 65533:7 chmod f 0777
as 65532:7 open f RDONLY
as 65532:100 access f 4
chmod f 0600
getacl f access
as 65533:7 access f 4
chmod f 0666
getacl f access
as 65533:7 access f 4
as 65532:7 access f 6
as 65533:7 setacl f access u:7 g:7 o:7
as 65534:100 setacl f access u:7 g:5 o:1
getacl f access
lstat f
listxattr f
removexattr f system.posix_acl_access
lstat f

make {file,dir} f 02750
chown f 65534 100
as 65534:101 setacl f access u:7 g:5 u5:7 m:7 o:0
lstat f
chmod f 02750
as 65534:100 setacl f access u:7 g:5 u5:7 m:7 o:0
lstat f

umask {0,022,077}
make dir d 0777
setacl d default u:7 u65533:6 g:5 m:7 o:4
getacl d default
lstat d
make {file,dir,fifo,socket,symlink} d/f {0777,0644,0600}
lstat d/f
getacl d/f access
getacl d/f default
make dir d/e
make file d/e/g 0666
lstat d/e/g
getacl d/e/g access
removexattr d system.posix_acl_default
make file d/h 0666
lstat d/h

make {file,fifo,symlink} f
setacl f default u:7 g:5 o:4
setacl f access u:7 g:5
setacl f access u:7 g:5 o:4 u5:4
setacl f access u:7 g:5 o:4 o:4
setacl f access u:8 g:5 o:4
setxattr f system.posix_acl_access junk
getacl f access
lstat f

make dir d 0700
setacl d access u:7 u65533:1 g:0 m:1 o:0
make file d/f 0644
as 65533:7 open d/f RDONLY
as 65533:7 ls d
as 65532:7 open d/f RDONLY
make file f 0604
setacl f access u:6 g5:0 g:4 m:4 o:4
as 65533:5 open f RDONLY
as 65533:7:5 open f RDONLY
as 65533:7 open f RDONLY
as 65533:5:0 open f RDONLY
`},
}
