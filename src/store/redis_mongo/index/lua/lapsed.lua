-- Leases entries whose leases have lapsed to the caller, which fences the old workers off in MongoDB and then releases the entries.
-- The caller measures leases by its own clock: it remembers when it made each look, and names one that is at least a lease ago. An entry has
-- lapsed if the same worker had leased it at that look and still has it.
-- ARGV: now, streams, consumer, epoch, look (what was leased before this one of that index has lapsed; 0: nothing has).
-- Gives: epoch, the number of this look (what is leased now was leased before it), then for each: stream, entry, id.
local streams, consumer = tonumber(ARGV[2]), ARGV[3]
local name, _, looks = epoch_of_this_run('looks')
if not name then return {'', '0'} end
even_when_full()
local look, any_leased = name == ARGV[4] and tonumber(ARGV[5]) or 0, false
local answer = {name, ''}

-- The names of entries of a stream that this worker has leased since before that look.
local function lapsed(stream, worker)
  if look == 0 then return {} end
  local time = redis.call('TIME')
  local idle = time[1] * 1000 + math.floor(time[2] / 1000) - (look * LOOK - LOOK / 2)
  local names = {}
  for _, pending in ipairs(redis.call('XPENDING', key_of(stream, 'jobs'), GROUP, 'IDLE', number(idle), '-', '+', 256, worker)) do
    names[#names + 1] = pending[1]
  end
  return names
end

for stream = 0, streams - 1 do
  local jobs = key_of(stream, 'jobs')
  -- Worker by worker, to leave out the entries that were given back, which may be many.
  for _, worker in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, GROUP)) do
    local who, leased = worker[2], worker[4]
    if leased > 0 and who ~= FREE then
      any_leased = true
      for _, entry in ipairs(lapsed(stream, who)) do
        local entries = redis.call('XCLAIM', jobs, GROUP, consumer, '0', entry)
        if not entries[1] then redis.call('XACK', jobs, GROUP, entry) end
        for _, one in ipairs(well_formed(stream, entries)) do
          lease(stream, {one[1]}, consumer)
          redis.call('HSET', index, one[2][2], leased_at(stream, one[1], consumer))
          answer[#answer + 1] = tostring(stream)
          answer[#answer + 1] = one[1]
          answer[#answer + 1] = one[2][2]
        end
      end
    elseif leased == 0 and worker[6] > 3600000 then
      -- Workers that have gone leave their names behind.
      redis.call('XGROUP', 'DELCONSUMER', jobs, GROUP, who)
    end
  end
  redis.call('ZREMRANGEBYSCORE', key_of(stream, 'resting'), '-inf', ARGV[1])
end
-- While nothing is leased, the number need not grow.
answer[2] = tostring(any_leased and redis.call('HINCRBY', state, 'looks', 1) or looks)
return answer
