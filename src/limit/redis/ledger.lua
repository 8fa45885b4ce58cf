-- What the book has of the long limits, as in src/limit/ledger.rs: for each sub-window how many calls are used and how many are paid for.
-- Only functions, which take the pool `p` first (see pool.lua).
--
-- A call is given only when its sub-window has one that is paid for. The caller pays: it writes the book and then reports it here. Numbers
-- in the book only grow; when several callers pay for the same sub-window, the greatest of their numbers counts.

-- A tenant's account: `subs` has its sub-windows by their end in milliseconds, rounded up, which is their name in the book.
local function account_of(p, number, tenant)
  local ledger = p.spec.ledgers[number]
  local owner = ledger.per_tenant and tenant or ''
  local id = number .. ':' .. owner
  local a = p.accounts[id]
  if not a then
    a = { key = key_of(p, 'book/' .. ledger.name, owner), tenant = owner, subs = {}, is_calendar = ledger.zone > 0 }
    local stored = get(p, a.key)
    a.is_new = not stored
    local flat = stored and cmsgpack.unpack(stored) or {}
    for i = 1, #flat, 3 do a.subs[flat[i]] = { used = flat[i + 1], paid = flat[i + 2], before = flat[i + 1] } end
    p.accounts[id] = a
  end
  return a
end

-- The ends of the sub-windows that a call at `at` counts in.
local function sub_ends(p, ledger, at)
  if ledger.zone == 0 then
    return { math.ceil((math.floor(at / ledger.len) * ledger.len + ledger.len) / 1000) }
  end
  local edges, ends = p.edges[ledger.zone], {}
  for _, i in ipairs(touched(edges, p.spec.skew, at + p.ahead)) do ends[#ends + 1] = math.ceil(edges[i + 1] / 1000) end
  return ends
end

-- Counts calls of a tenant at `at`. `wish` is the number of the wish that needs them; `unpaid` lists what is not paid for yet.
local function use(p, tenant, at, calls, wish)
  for number, ledger in ipairs(p.spec.ledgers) do
    local a = account_of(p, number, tenant)
    for _, ends_at in ipairs(sub_ends(p, ledger, at)) do
      local sub = a.subs[ends_at]
      if not sub and calls > 0 then
        sub = { used = 0, paid = 0, before = 0 }
        a.subs[ends_at] = sub
      end
      if sub then
        sub.used, a.is_touched = math.max(sub.used + calls, 0), true
        if sub.used > sub.paid then a.number, a.wish = number, a.wish or wish end
      end
    end
  end
end

-- The book has so many calls of a sub-window by now.
local function pay(p, number, tenant, ends_at, calls)
  local a = account_of(p, number, tenant)
  local sub = a.subs[ends_at] or { used = 0, paid = 0, before = 0 }
  sub.paid = math.max(sub.paid, calls)
  a.subs[ends_at], a.is_touched = sub, true
  return sub
end

-- What has to be paid before all counted calls are covered, at least a block each: { ledger, wish, end, calls, ... }.
local function unpaid(p)
  local due = {}
  for _, a in pairs(p.accounts) do
    for ends_at, sub in pairs(a.wish and a.subs or {}) do
      if sub.used > sub.paid then
        local calls = math.max(sub.used, sub.before + p.spec.ledgers[a.number].block)
        for _, number in ipairs({ a.number, a.wish, ends_at, calls }) do due[#due + 1] = number end
      end
    end
  end
  return due
end

-- Saves the accounts that were changed. Whoever needs one after this loads it again.
local function save_accounts(p)
  for _, a in pairs(p.accounts) do
    if a.is_touched then
      local flat, last = {}, p.now
      local wall = a.is_calendar and p.ahead or 0
      for ends_at, sub in pairs(a.subs) do
        -- In a sub-window that ended a while ago no call is given or taken back any more; the counts remember its calls.
        if ends_at * 1000 + p.spec.skew >= p.now + wall then
          flat[#flat + 1], flat[#flat + 2], flat[#flat + 3] = ends_at, sub.used, sub.paid
          last = math.max(last, ends_at * 1000 + p.spec.skew - wall)
        end
      end
      put(p, a.key, a.tenant, a.is_new, last, cmsgpack.pack(flat))
    end
  end
  p.accounts = {}
end
