package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/spacestore/space"

// file is one Go file of the tree that is no test.
type file struct {
	name string // relative to the root
	pkg  string // its package's directory, relative to the root
	*ast.File
}

// imports returns the file's imports and how each is called in it.
func (f *file) imports() map[string]string {
	m := map[string]string{}
	for _, spec := range f.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the compiler says so
		}
		m[p] = path.Base(p)
		if spec.Name != nil {
			m[p] = spec.Name.Name
		}
	}
	return m
}

const root = "../.."

// sources parses every Go file of the module that is no test.
func sources(t *testing.T) (*token.FileSet, []file) {
	t.Helper()
	set := token.NewFileSet()
	var files []file
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := e.Name()
		if e.IsDir() {
			if name != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") || strings.HasPrefix(base, ".") {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		parsed, err := parser.ParseFile(set, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, file{rel, path.Dir(rel), parsed})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d Go files under %s", len(files), root)
	}
	return set, files
}

func TestImportsGoDownward(t *testing.T) {
	_, files := sources(t)
	for _, f := range files {
		if matchesAny(outside, f.pkg) {
			continue
		}
		if floorOf(f.pkg) < 0 {
			t.Errorf("%s: package %s has no floor in the house; give it one in internal/lint/floors.go", f.name, f.pkg)
			continue
		}
		for imp := range f.imports() {
			to, ours := strings.CutPrefix(imp, module+"/")
			switch {
			case !ours:
			case matchesAny(testOnly, to) && !matchesAny(testOnly, f.pkg):
				t.Errorf("%s imports %s, which is for tests", f.name, to)
			case !mayImport(f.pkg, to):
				t.Errorf("%s: %s imports %s, which is not below it; imports go downward only (internal/lint/floors.go has the floors)", f.name, f.pkg, to)
			}
		}
	}
}

func TestFloors(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"cmd/spacectl", "pipeline", true},
		{"pipeline", "capsule", false},
		{"capsule", "pipeline", true}, // by floor; that it imports nothing is another rule
		{"views/fuse", "views", true},
		{"views", "views/fuse", false},
		{"views/fuse", "views/nfs", false},
		{"capsule/store/metafs", "capsule/store", false},
		{"capsule/store/metafs", "capsule/store/keyring", false},
		{"federation/zone", "federation", false},
		{"internal/vfs/vfstest", "internal/vfs", true},
		{"internal/nowhere", "capsule", false},
	} {
		if got := mayImport(c.from, c.to); got != c.want {
			t.Errorf("may %s import %s: %v, want %v", c.from, c.to, got, c.want)
		}
	}
}

// TestEveryPackageIsExplained wants a package comment in doc.go; in main.go is
// fine for a command, and in the only file of a package that has just one.
func TestEveryPackageIsExplained(t *testing.T) {
	_, files := sources(t)
	byPkg := map[string][]file{}
	for _, f := range files {
		byPkg[f.pkg] = append(byPkg[f.pkg], f)
	}
	for pkg, files := range byPkg {
		i := slices.IndexFunc(files, func(f file) bool {
			base := path.Base(f.name)
			return base == "doc.go" || base == "main.go" && f.Name.Name == "main"
		})
		if len(files) == 1 {
			i = 0
		}
		if i < 0 {
			t.Errorf("package %s has no doc.go", pkg)
			continue
		}
		f, command := files[i], path.Base(pkg)
		begins := []string{"Package " + f.Name.Name + " "}
		if f.Name.Name == "main" {
			begins = []string{"Command " + command + " ", strings.ToUpper(command[:1]) + command[1:] + " "}
		}
		if !slices.ContainsFunc(begins, func(b string) bool { return strings.HasPrefix(f.Doc.Text(), b) }) {
			t.Errorf("%s: the package comment does not begin with %q", f.name, begins[0])
		}
	}
}

func TestSeams(t *testing.T) {
	set, files := sources(t)
	for _, f := range files {
		imports := f.imports()
		for imp := range imports {
			_, ours := strings.CutPrefix(imp, module)
			switch {
			case strings.HasPrefix(imp, "github.com/cockroachdb/pebble") && !matchesAny(engineUsers, f.pkg):
				t.Errorf("%s imports the metadata engine; it is behind capsule/store", f.name)
			case f.pkg == "capsule" && ours:
				t.Errorf("%s imports %s; package capsule imports nothing of the project", f.name, imp)
			case matchesAny(pure, f.pkg) && slices.Contains([]string{"os", "os/exec", "net", "net/http", "syscall", "golang.org/x/sys/unix"}, imp):
				t.Errorf("%s imports %s; package %s does no I/O", f.name, imp, f.pkg)
			}
		}
		if call := calls(f.File, imports["time"], clockCalls); call.IsValid() && f.pkg == "pipeline" {
			t.Errorf("%s reads the clock; package pipeline is pure", set.Position(call))
		}
		if !matches("capsule/store/...", f.pkg) {
			continue
		}
		if call := calls(f.File, imports["os"], osFiles); call.IsValid() {
			t.Errorf("%s goes around internal/vfs; a crash or fault test would not see it", set.Position(call))
		}
	}
}

var clockCalls = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}

// osFiles are the functions of package os that touch the file system.
var osFiles = []string{"Chmod", "Chown", "Chtimes", "CopyFS", "Create", "CreateTemp", "DirFS", "Lchown", "Link", "Lstat",
	"Mkdir", "MkdirAll", "MkdirTemp", "NewFile", "Open", "OpenFile", "OpenInRoot", "OpenRoot", "ReadDir", "ReadFile",
	"Readlink", "Remove", "RemoveAll", "Rename", "Stat", "Symlink", "Truncate", "WriteFile"}

// calls finds the first use of one of a package's functions.
func calls(f *ast.File, pkg string, names []string) (at token.Pos) {
	if pkg == "" {
		return token.NoPos
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && !at.IsValid() {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == pkg && slices.Contains(names, s.Sel.Name) {
				at = s.Pos()
			}
		}
		return !at.IsValid()
	})
	return at
}

func TestLicense(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "LICENSE"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("LICENSE lacks %q", want)
		}
	}
}

var mdLink = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// TestLinks wants every relative link of the documents to lead somewhere.
func TestLinks(t *testing.T) {
	var pages []string
	for _, glob := range []string{"*.md", "docs/*.md", "*/*/DESIGN.md"} {
		found, err := filepath.Glob(filepath.Join(root, glob))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mdLink.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
		}
	}
}
